"""Rules for settings that several methods have."""

from seecoder.checks import Rule, either, number, some_of, whole

TRAJECTORY_FRACTION = Rule(number(0.0, 1.0).accepts, "a fraction of the trajectory, 0 to 1")
LENGTHS = either(whole(1), some_of(whole(1), "a pair of them (rows, columns)", minimum=2, maximum=2))
