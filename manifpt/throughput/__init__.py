"""How fast is it, next to what one would use instead? Measured side by side, never alone."""
