"""The ground floor: errors, files, settings, logs and signals that every room stands on."""
