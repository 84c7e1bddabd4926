"""Knowledge generation: records in, texts out."""
