"""The lessons as a whole: run, rehearsed, checked beforehand, reported."""
