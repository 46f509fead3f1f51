"""The web app: a page on this machine that varies pictures. Needs the extra `app`."""
