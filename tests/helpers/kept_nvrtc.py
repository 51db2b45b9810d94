"""What NVRTC makes of fastpe's kernel files, kept between runs: the same source gets the same answer."""

from __future__ import annotations

from typing import Any

import kept

from fastpe._backends.cuda import compile

_compile_source = compile.compile_source


def compile_source(name: str, architecture: str, *options: str) -> tuple[str, str]:
    """As ``compile.compile_source``: PTX for ``compute_XY``; for ``sm_XY`` the log alone, after a look at the cubin."""
    from cupy.cuda import nvrtc

    def make() -> str:
        result, log = _compile_source(name, architecture, *options)
        if architecture.startswith("sm_"):
            assert result.startswith(b"\x7fELF")
            return log
        return result.decode() if isinstance(result, bytes) else result

    facts: Any = (compile.source(name), architecture, compile.OPTIONS, options, nvrtc.getVersion())
    is_log = architecture.startswith("sm_")
    text = kept.text(kept.folder("nvrtc"), f"{name}-{architecture}.{'log' if is_log else 'ptx'}", facts, make).read_text()
    return ("", text) if is_log else (text, "")
