"""The section that every TLS connection shares."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from agent.config.section import ConfigPath, Disagreement, Section


class TlsConfig(Section):
    """TLS; an empty section (``tls: {}``) trusts the system's authorities."""

    ca_file: ConfigPath | None = Field(default=None, description="certificates to trust, PEM (the system's)")
    cert_file: ConfigPath | None = Field(default=None, description="this client's certificate, PEM")
    key_file: ConfigPath | None = Field(default=None, description="its private key, PEM, without a passphrase")

    def disagreements(self) -> Iterator[Disagreement]:
        if (self.cert_file is None) != (self.key_file is None):
            given, absent = ("cert_file", "key_file") if self.key_file is None else ("key_file", "cert_file")
            yield Disagreement((given, absent), f"is given without {absent}; give both or neither")
