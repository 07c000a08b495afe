"""Piccola Italia: tables of facts, sentences in two languages, corpora, tokenizer and the small base model."""
