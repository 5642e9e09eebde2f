"""The page of ``flamest-agent label``: a server on loopback for the person who labels."""
