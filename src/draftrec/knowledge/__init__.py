"""Knowledge generation: records in, texts and vectors out."""
