"""What all networks share: torchvision's classifiers, the device, and trainings by Ray Train."""
