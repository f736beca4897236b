"""The Hugging Face hub, or any that answers like it: what there is, downloading, what is here.

Models lie in the cache of the `huggingface_hub` library (`HF_HOME`), in its layout, which
transformers and others share: nothing is downloaded twice, and what they downloaded Puna opens.
The library is imported only where a hub's name is meant: a model in a file never needs it.
"""
