"""What differs between families of Vision Transformers, so that the method has to know one form: ``parts`` are the
modules that a plain ViT does without, ``families`` reads timm's classes into that form, ``huggingface`` those of
transformers, and ``python -m hiap.formats.supported`` tells what becomes of every entry of timm."""
