"""The protocol between silo and coordinator: messages, tensors, the head, identity."""
