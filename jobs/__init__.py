"""The code is in manifpt/jobs; these run it from a checkout."""
