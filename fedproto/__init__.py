"""The contract between silo and coordinator: messages, tensors, the head's shape, identity."""
