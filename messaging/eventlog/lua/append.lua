-- Append records, all or none, at dense offsets; the id of offset n is '<n + 1>-0' (0-0 is no id).
-- KEYS: prefix. ARGV: onward (0 or 1), (topic, hash of key, key, value, headers)...
-- Returns partition, offset, partition, offset...
local prefix = KEYS[1]
if ARGV[1] == '1' then
  redis.call('DEL', prefix .. 'none') -- a script that has written is not refused by a full server (see ADR 0002)
end
local time = redis.call('TIME')
local now_ms = time[1] .. string.format('%03d', math.floor(time[2] / 1000))

local partitions, sources, counts, sizes = {}, {}, {}, {}
for i = 2, #ARGV, 5 do
  local topic = ARGV[i]
  if not partitions[topic] then
    local known = redis.call('HGET', prefix .. 'topics', topic)
    if not known then
      return redis.error_reply('NOTOPIC ' .. topic)
    end
    partitions[topic] = cjson.decode(known).partitions
  end
  local source = topic .. '/' .. (tonumber(ARGV[i + 1]) % partitions[topic])
  sources[#sources + 1] = source
  counts[source] = (counts[source] or 0) + 1
  sizes[source] = (sizes[source] or 0) + #ARGV[i + 2] + #ARGV[i + 3] + #ARGV[i + 4]
end

-- The offsets are reserved before the records: an offset may stay empty, but is never taken twice. The first of
-- these writes is what a full server refuses (OOM) unless they go onward, so that nothing is appended then.
local next_offset = {}
for source, count in pairs(counts) do
  next_offset[source] = redis.call('HINCRBY', prefix .. 'end', source, count) - count
  redis.call('HINCRBY', prefix .. 'bytes', source, sizes[source])
end

local placed = {}
for n, source in ipairs(sources) do
  local at = (n - 1) * 5 + 1
  local offset = next_offset[source]
  next_offset[source] = offset + 1
  redis.call('XADD', prefix .. 'records:' .. source, string.format('%d-0', offset + 1),
    't', now_ms, 'k', ARGV[at + 3], 'v', ARGV[at + 4], 'h', ARGV[at + 5])
  placed[#placed + 1] = tonumber(string.match(source, '(%d+)$'))
  placed[#placed + 1] = offset
end
return placed
