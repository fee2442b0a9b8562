"""Alerts to people: one POST of JSON to a webhook. A webhook's URL lets anyone post, so it is kept as a secret."""

import json
import logging
import urllib.request
from urllib.parse import urlsplit

import dagster as dg

log = logging.getLogger("lancet.alerts")


class Alerts(dg.ConfigurableResource):
    """`webhook` takes the POSTs; nothing is sent where it is empty. `page` is the address of Dagster's page, for links."""

    webhook: str = ""
    page: str = ""
    timeout: float = 5.0

    def send(self, event: str, study: str, message: str, *, run_id: str = "", asset: str = "", check: str = "") -> bool:
        """POST {event, study, run_id, asset, check, message, url}; two tries. Never raises: an alert that is not delivered
        is logged with the host alone, and the work goes on.

        Returns:
            Whether the webhook took it.
        """
        if not self.webhook:
            return False
        url = f"{self.page.rstrip('/')}/runs/{run_id}" if self.page and run_id else self.page
        body = {"event": event, "study": study, "run_id": run_id, "asset": asset, "check": check}
        content = json.dumps({**body, "message": message, "url": url}).encode()
        host, error = "its address is no URL", "no host"
        for _ in range(2):
            try:
                parts = urlsplit(self.webhook)
                if parts.scheme not in {"http", "https"} or not parts.hostname:
                    break
                host = parts.hostname
                request = urllib.request.Request(self.webhook, content, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=self.timeout):
                    return True
            except Exception as failed:  # whatever a stranger's server does, the run is not to suffer
                error = type(failed).__name__  # its text may hold the URL
        log.warning("alert '%s' of study '%s' was not delivered to the webhook (%s: %s)", event, study, host, error)
        return False
