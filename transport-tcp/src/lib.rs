//! TCP fabric and control plane of a KV-cache transport.
