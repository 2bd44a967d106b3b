"""The code is in manifpt/tuning; these run it from a checkout."""
