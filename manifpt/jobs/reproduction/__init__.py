"""The paper's experiments: rows, the artifacts that they need, and one module for each table."""
