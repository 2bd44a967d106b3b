"""Code of all networks: torchvision's classifiers, the device, and trainings by Ray Train."""
