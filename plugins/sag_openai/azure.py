"""Azure's two forms of address, and tokens of Entra.

The older form has the deployment in the path and wants an `api-version`; the v1 form is OpenAI's own, with the
deployment as the model. Tokens come from the library azure-identity, which is imported when the first is fetched.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import time
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from sag.plugin import ProviderError

EARLY_S = 300.0  # a token is fetched anew so long before it expires
MISSING = "Tokens of Entra need the library azure-identity: install sag-hub[azure]."

_PREVIEWS = ("preview", "latest")
_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)")


class Endpoint:
    """Where a resource of Azure is asked.

    Args:
        base_url: The resource's endpoint, with `/openai`, `/openai/v1`, or as the portal shows it whole, with the
            deployment and the `api-version`.
        api_version: Left out, the address decides; `preview` and `latest` are the v1 form's.

    Attributes:
        version: The version of the older form; "" for the v1 form.
        deployment: That of a whole address; else "".
    """

    def __init__(self, base_url: str, api_version: str = "") -> None:
        parts = urlsplit(base_url)
        path = parts.path.rstrip("/")
        found = _DEPLOYMENT.search(path)
        version = api_version or parse_qs(parts.query).get("api-version", [""])[0]
        v1 = path.endswith("/v1") or version in ("v1", *_PREVIEWS)
        self.deployment = found[1] if found else ""
        self.version = "" if v1 else version
        self._query = f"?api-version={quote(version)}" if self.version or version in _PREVIEWS else ""
        if found:
            path = path[: found.start()]
        root = f"{parts.scheme}://{parts.netloc}{path.removesuffix('/v1').removesuffix('/openai')}"
        if self.version:
            self._root = f"{root}/openai"
        else:
            self._root = f"{parts.scheme}://{parts.netloc}{path}" if path.endswith("/v1") else f"{root}/openai/v1"

    def url(self, path: str, deployment: str = "") -> str:
        """The address of `chat/completions`, `responses` or `models`."""
        if self.version and path == "chat/completions":
            path = f"deployments/{quote(deployment, safe='')}/{path}"
        return f"{self._root}/{path}{self._query}"


class EntraToken:
    """A token that is kept until shortly before it expires.

    Args:
        scope: What it is for.
    """

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._credential: Any = None
        self._token = ""
        self._until = 0.0
        self._fetching = asyncio.Lock()

    async def get(self) -> str:
        """The token.

        Raises:
            ProviderError: provider.auth; there is none to be had, or the library is missing.
        """
        async with self._fetching:  # who asks meanwhile shares it
            if time.time() >= self._until:
                self._token, self._until = await asyncio.to_thread(self._fetch)
            return self._token

    def _fetch(self) -> tuple[str, float]:
        try:
            identity: Any = importlib.import_module("azure.identity")
        except ImportError:
            raise ProviderError("provider.auth", MISSING) from None
        try:
            if self._credential is None:
                self._credential = identity.DefaultAzureCredential()
            given = self._credential.get_token(self._scope)
        except Exception as e:
            # Its errors are long, one paragraph for each way that it tried.
            text = f"Entra gives no token ({type(e).__name__}): {' '.join(str(e).split())}"
            raise ProviderError("provider.auth", text) from e
        left_s = given.expires_on - time.time()
        return given.token, time.time() + max(left_s - EARLY_S, left_s / 2)
