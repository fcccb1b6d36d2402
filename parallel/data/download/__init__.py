"""Getting public data sets: addresses, resumable downloads, and archives that are not trusted."""
