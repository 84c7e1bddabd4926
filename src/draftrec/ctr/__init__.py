"""Click models with knowledge vectors: does what a language model wrote help to predict clicks?"""
