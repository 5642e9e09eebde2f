"""What a bundle's graphs compute in: half precision, int8, and the ledger that proves it."""
