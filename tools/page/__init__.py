"""Show a page in the browser: a picture, sentences, and the masks that adapters find."""
