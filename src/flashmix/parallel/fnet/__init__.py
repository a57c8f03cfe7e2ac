"""FNet mixing across ranks: tokens are exchanged for columns of the half-spectrum, and back."""
