-- One bounded step of retention: drop the oldest records that are too old, or too many bytes, and that every group
-- has done with. Records of a topic that no group reads count as done with. A topic may have no bound of bytes; of
-- the others nothing is kept while more than nine tenths of the server's memory are taken.
-- KEYS: prefix. ARGV: topic, partition, now_ms. Returns records dropped, and 1 when there may be more to drop.
local prefix, source = KEYS[1], ARGV[1] .. '/' .. ARGV[2]
local stream = prefix .. 'records:' .. source
local known = redis.call('HGET', prefix .. 'topics', ARGV[1])
local length = redis.call('XLEN', stream)
if not known or length == 0 then
  return { 0, 0 }
end
known = cjson.decode(known)

local max_bytes = known.max_bytes
local info = redis.pcall('INFO', 'memory') -- some 25 us; an ACL may refuse it, and then it is no string
info = type(info) == 'string' and info or ''
local taken = tonumber(string.match(info, '\nused_memory:(%d+)') or 0)
local limit = tonumber(string.match(info, '\nmaxmemory:(%d+)') or 0)
if max_bytes and limit > 0 and taken > 0.9 * limit then
  max_bytes = -1
end

local watermark = tonumber(redis.call('HGET', prefix .. 'end', source))
for _, group in ipairs(redis.call('SMEMBERS', prefix .. 'readers:' .. ARGV[1])) do
  local committed = tonumber(redis.call('HGET', prefix .. 'committed:' .. group, source) or 0)
  watermark = math.min(watermark, committed)
end

local bytes = tonumber(redis.call('HGET', prefix .. 'bytes', source) or 0)
local step = math.floor(1048576 / math.max(1, bytes / length)) -- looks at about 1 MiB at a time
step = math.max(1, math.min(step, 256))
local oldest_kept_ms = tonumber(ARGV[3]) - known.retention_ms

local entries = redis.call('XRANGE', stream, '-', '+', 'COUNT', step)
local dropped, freed, last = 0, 0, nil
for _, entry in ipairs(entries) do
  local offset = tonumber(string.match(entry[1], '^%d+')) - 1
  local fields = entry[2]
  local fits = not max_bytes or bytes - freed <= max_bytes
  if offset >= watermark or (fits and tonumber(fields[2]) >= oldest_kept_ms) then
    break
  end
  dropped, last = dropped + 1, offset
  freed = freed + #fields[4] + #fields[6] + #fields[8]
end
if dropped > 0 then
  redis.call('XTRIM', stream, 'MINID', string.format('%d-0', last + 2))
  redis.call('HINCRBY', prefix .. 'bytes', source, -freed)
  redis.call('HSET', prefix .. 'start', source, string.format('%d', last + 1))
end
return { dropped, (dropped == #entries and dropped < length) and 1 or 0 }
