"""Jobs that can be resumed: records to texts, texts to vectors, histories to items."""
