"""The commands of ``flamest-export``, one file each."""
