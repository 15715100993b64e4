# SPDX-License-Identifier: Apache-2.0
"""Streaming: the HTTP server behind Exec, Attach and PortForward, and the codecs of its protocols."""
