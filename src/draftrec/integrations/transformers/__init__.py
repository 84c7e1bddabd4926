"""Speculative decoding inside transformers' own `generate`.

```python
from draftrec.integrations import transformers as draftrec

pool = draftrec.new_pool(tokenizer)
model.generate(**inputs, custom_generate=draftrec.generate, pool=pool, grow_pool=True)
```
"""

from draftrec.integrations.transformers.method import Output, generate
from draftrec.integrations.transformers.ready import (
    generate_ready,
    load_ready,
    make_ready,
    new_pool,
    open_pool,
)

__all__ = [
    "Output",
    "generate",
    "generate_ready",
    "load_ready",
    "make_ready",
    "new_pool",
    "open_pool",
]
