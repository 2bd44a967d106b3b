"""A trained attributor over any number of images: verdicts, copies, groups, retries."""
