"""Images and groups of sources that the attributor has never seen."""
