"""Finished outputs as pages: one HTML file that shows results, pictures and their evidence."""
