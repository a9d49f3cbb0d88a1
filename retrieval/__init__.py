"""Retrieval: loaders, chunks, embeddings, dense and lexical search, fusion, reranking, the store. Imports core only."""
