"""How well generators are told apart, on images that no step has seen."""
