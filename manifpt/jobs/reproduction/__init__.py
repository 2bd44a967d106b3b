"""The paper's experiments: methods, the artifacts that they need, and a module for each table."""
