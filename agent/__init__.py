"""The silo's side: extract, store, train, talk. No torch, no transformers."""
