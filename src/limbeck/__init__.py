"""limbeck distils what a large model knows into something small."""
