"""The attributor: its network, its training, its calibration, and its folder."""
