"""What the Triton implementations share. Nothing in here imports Triton before it is used."""
