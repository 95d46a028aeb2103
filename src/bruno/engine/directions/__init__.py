"""The directions that carry a behaviour: extracted from captures, composed, protected. Pure on tensors."""
