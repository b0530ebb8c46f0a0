"""Raw downloads to prepared datasets; never imported by ``mer_dg``."""
