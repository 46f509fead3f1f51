"""The parts of `seecoder vary` and `seecoder panorama`: what is asked for, checked early, made in batches."""
