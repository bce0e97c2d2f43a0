"""Rows of the table with the names of other schemas.

In: a name of NAMES. Out: a query on `found`, which has the columns of the table.

Source: Elastic Common Schema (event.*, source.*, destination.*, network.*, process.*); OCSF 1.x, class Network Activity
(4001); Zeek, base/protocols/conn (conn.log). ECS and OCSF call the local end of sent packets the source; Zeek's
originator is the local end of rows whose own port is the higher one: an index
does not know who has opened a connection.
"""

from __future__ import annotations

_TRANSPORT = "CASE protocol WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' WHEN 1 THEN 'icmp' WHEN 58 THEN '{six}' END"
_PACKETS = "packets_out + packets_in + packets_unknown"
_BYTES = "bytes_out + bytes_in + bytes_unknown"
_IS_ORIGINATOR = "coalesce(local_port, 0) >= coalesce(peer_port, 0)"

ECS = f"""SELECT ts_first AS "@timestamp", ts_first AS "event.start", ts_last AS "event.end",
'network' AS "event.category",
host_name AS "host.name", local_address AS "source.ip", local_port AS "source.port", peer_address AS "destination.ip",
peer_port AS "destination.port", peer_name AS "destination.domain", protocol AS "network.iana_number",
{_TRANSPORT.format(six="ipv6-icmp")} AS "network.transport",
{_PACKETS} AS "network.packets", {_BYTES} AS "network.bytes",
packets_out AS "source.packets", bytes_out AS "source.bytes", packets_in AS "destination.packets",
bytes_in AS "destination.bytes", process_name AS "process.name", process_pid AS "process.pid",
thread_id AS "process.thread.id", thread_name AS "process.thread.name", user_name AS "user.name",
container_id AS "container.id", pod AS "orchestrator.resource.name", interface AS "observer.ingress.interface.name",
file AS "file.name" FROM found ORDER BY ALL"""

OCSF = f"""SELECT 4001 AS class_uid, 4 AS category_uid, 6 AS activity_id, 400106 AS type_uid, 1 AS severity_id,
epoch_ms(ts_first) AS time, epoch_ms(ts_first) AS start_time, epoch_ms(ts_last) AS end_time,
host_name AS "device.hostname",
local_address AS "src_endpoint.ip", local_port AS "src_endpoint.port", interface AS "src_endpoint.interface_name",
peer_address AS "dst_endpoint.ip", peer_port AS "dst_endpoint.port", peer_name AS "dst_endpoint.domain",
protocol AS "connection_info.protocol_num", {_TRANSPORT.format(six="ipv6-icmp")} AS "connection_info.protocol_name",
packets_out AS "traffic.packets_out", bytes_out AS "traffic.bytes_out", packets_in AS "traffic.packets_in",
bytes_in AS "traffic.bytes_in", {_PACKETS} AS "traffic.packets", {_BYTES} AS "traffic.bytes",
process_name AS "actor.process.name", process_pid AS "actor.process.pid", thread_id AS "actor.process.tid",
user_name AS "actor.user.name", container_id AS "actor.process.container.uid" FROM found ORDER BY ALL"""

ZEEK = f"""SELECT epoch_us(ts_first) / 1e6 AS ts,
md5(concat_ws(' ', host_name, file, "offset", first_at, interface_id))[:17] AS uid,
CASE WHEN {_IS_ORIGINATOR} THEN local_address ELSE peer_address END AS "id.orig_h",
CASE WHEN {_IS_ORIGINATOR} THEN local_port ELSE peer_port END AS "id.orig_p",
CASE WHEN {_IS_ORIGINATOR} THEN peer_address ELSE local_address END AS "id.resp_h",
CASE WHEN {_IS_ORIGINATOR} THEN peer_port ELSE local_port END AS "id.resp_p",
{_TRANSPORT.format(six="icmp")} AS proto, (epoch_us(ts_last) - epoch_us(ts_first)) / 1e6 AS duration,
CASE WHEN {_IS_ORIGINATOR} THEN packets_out ELSE packets_in END AS orig_pkts,
CASE WHEN {_IS_ORIGINATOR} THEN packets_in ELSE packets_out END AS resp_pkts,
CASE WHEN {_IS_ORIGINATOR} THEN bytes_out ELSE bytes_in END AS orig_l2_bytes,
CASE WHEN {_IS_ORIGINATOR} THEN bytes_in ELSE bytes_out END AS resp_l2_bytes,
host_name AS node, process_name, process_pid FROM found ORDER BY ALL"""

ROWS = "SELECT * FROM found ORDER BY ALL"

NAMES = {"sums": "", "rows": ROWS, "ecs": ECS, "ocsf": OCSF, "zeek": ZEEK}
