"""Everything that leaves a silo: policy, guard, ledger."""
