-- The process of a packet as fields of Wireshark: skbcapd.process, skbcapd.comm, skbcapd.tgid, skbcapd.via and more, for
-- columns and display filters (skbcapd.tgid == 1058).
--
-- In: the packet's comments (frame.comment). Out: a tree "skbcapd" with a field for each key of the first comment that
-- skbcapd wrote. docs/format.md has the grammar.
--
-- The rule not to break: a comment that is not completely in the grammar is from another program, and has no fields. An
-- unknown key is shown under skbcapd.other, so this file can be older than the capture.
--
-- A value is escaped as in `skbcapd top`: a backslash as \\, each byte that is not printable ASCII as \x and two hex
-- digits.
--
-- Lua 5.2 (Wireshark up to 4.2) and 5.4 (from 4.4 on).

set_plugin_info({
    version = "1",
    description = "The process of each packet, from the comments that skbcapd writes",
})

local skbcapd = Proto("skbcapd", "skbcapd")

local DEC = base.DEC
-- FIELDS: from skbcapd/attribution/fields.py, by `make generate`
local fields = {
    comm = ProtoField.string("skbcapd.comm", "Thread", base.ASCII),
    pid = ProtoField.uint32("skbcapd.pid", "Thread id (pid)", DEC),
    tgid = ProtoField.uint32("skbcapd.tgid", "Process id (tgid)", DEC),
    process = ProtoField.string("skbcapd.process", "Process", base.ASCII),
    ppid = ProtoField.uint32("skbcapd.ppid", "Parent process id", DEC),
    uid = ProtoField.uint32("skbcapd.uid", "User id", DEC),
    user = ProtoField.string("skbcapd.user", "User", base.ASCII),
    gid = ProtoField.uint32("skbcapd.gid", "Group id", DEC),
    exe = ProtoField.string("skbcapd.exe", "Executable", base.ASCII),
    cmdline = ProtoField.string("skbcapd.cmdline", "Command line", base.ASCII),
    cgroup = ProtoField.string("skbcapd.cgroup", "Control group", base.ASCII),
    unit = ProtoField.string("skbcapd.unit", "systemd unit", base.ASCII),
    container = ProtoField.string("skbcapd.container", "Container", base.ASCII),
    pod = ProtoField.string("skbcapd.pod", "Kubernetes pod", base.ASCII),
    ns_pid = ProtoField.uint32("skbcapd.ns_pid", "Process id in its namespace", DEC),
    drop = ProtoField.string("skbcapd.drop", "Drop reason", base.ASCII),
    at = ProtoField.string("skbcapd.at", "Dropped at", base.ASCII),
    via = ProtoField.string("skbcapd.via", "Found by", base.ASCII, "How the process was found"),
}
local NUMBERS = { pid = true, tgid = true, ppid = true, uid = true, gid = true, ns_pid = true }
-- END
local other = ProtoField.string("skbcapd.other", "Other field", base.ASCII, "A key that this dissector does not know")

local copy = ProtoField.framenum("skbcapd.copy", "Same packet as in frame", base.NONE)

local registered = { other, copy }
for _, field in pairs(fields) do
    registered[#registered + 1] = field
end
skbcapd.fields = registered

local comments = Field.new("frame.comment")
local identifier = Field.new("frame.packet_id")

-- A packet that passes several interfaces has the same epb_packetid on each: the first frame with an identifier, and the
-- first frame of each later one. Wireshark marks such a copy as a TCP retransmission.
local first_of, original = {}, {}

function skbcapd.init()
    first_of, original = {}, {}
end

-- Adds skbcapd.copy to a packet that was seen on another interface before.
local function mark_copy(pinfo, branch)
    local found = not pinfo.visited and identifier()
    if found then
        local id = tostring(found.value)
        if first_of[id] then
            original[pinfo.number] = first_of[id]
        else
            first_of[id] = pinfo.number
        end
    end
    if original[pinfo.number] then
        branch:add(copy, original[pinfo.number]):set_generated()
    end
end

local BARE = '^[^ "=\\%c\128-\255]+'
local PLAIN = '^[^"=\\%c\128-\255]+'

-- Reads a quoted value from `at` on: returns the escaped value, and the position after the quote; nil if it is not in the
-- grammar, or if the quotes are not needed.
local function quoted(text, at)
    local parts, needed = {}, text:sub(at, at) == '"'
    while true do
        local plain, escape = text:match(PLAIN, at), text:sub(at, at + 1)
        local hex = text:match("^\\x([0-9a-f][0-9a-f])", at)
        local byte = hex and tonumber(hex, 16)
        local shown, length
        if plain then
            shown, length, needed = plain, #plain, needed or plain:find(" ", 1, true)
        elseif escape:sub(1, 1) == '"' then
            return needed and table.concat(parts) or nil, at + 1
        elseif escape == '\\"' or escape == "\\\\" then
            shown, length, needed = escape == '\\"' and '"' or escape, 2, true
        elseif byte and (byte < 0x20 or byte > 0x7e or byte == 0x3d) then
            shown, length, needed = byte == 0x3d and "=" or "\\x" .. hex, 4, true
        else
            return nil
        end
        parts[#parts + 1], at = shown, at + length
    end
end

-- The keys and values of a comment, and the keys in their order; nil if it is not in the grammar.
local function parse(text)
    local values, keys, at = {}, {}, 1
    while true do
        local key = text:match("^([a-z_]+)=", at)
        if not key or values[key] then
            return nil
        end
        at = at + #key + 1
        local value = text:match(BARE, at)
        if value then
            at = at + #value
        elseif text:sub(at, at) == '"' then
            value, at = quoted(text, at + 1)
        end
        if not value then
            return nil
        end
        values[key], keys[#keys + 1] = value, key
        if at > #text then
            return values, keys
        elseif text:sub(at, at) ~= " " then
            return nil
        end
        at = at + 1
    end
end

local function number(text)
    local value = #text <= 10 and text:find("^%d+$") and tonumber(text)
    return value and value < 2 ^ 32 and value or nil
end

function skbcapd.dissector(_, pinfo, tree)
    for _, comment in ipairs({ comments() }) do
        local values, keys = parse(comment.value)
        if values and (values.comm or values.process or values.tgid or values.via or values.drop) then
            local name = values.process or values.comm
            local who = name and name .. (values.tgid and "[" .. values.tgid .. "]" or "") or values.via
            local branch = tree:add(skbcapd):set_generated()
            branch:append_text(": " .. (who or ""))
            mark_copy(pinfo, branch)
            if values.comm and not values.process then
                values.process, keys[#keys + 1] = values.comm, "process" -- left out if it is the same
            end
            if (values.comm or values.process or values.tgid) and not values.via then
                values.via, keys[#keys + 1] = "current", "via" -- the process was running: the comment has no via
            end
            for _, key in ipairs(keys) do
                local value = NUMBERS[key] and number(values[key]) or values[key]
                if not fields[key] or (NUMBERS[key] and type(value) ~= "number") then
                    branch:add(other, key .. "=" .. values[key]):set_generated()
                else
                    branch:add(fields[key], value):set_generated()
                end
            end
            return
        end
    end
end

register_postdissector(skbcapd)
