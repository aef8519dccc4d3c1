-- Create topics, or retune those that exist: their partitions stay as they are unless growing, and never shrink.
-- KEYS: prefix. ARGV: grow (0 or 1), (topic, partitions, retention_ms, max_bytes or '')...
redis.call('DEL', KEYS[1] .. 'none') -- a script that has written is not refused by a full server (see ADR 0002)
for i = 2, #ARGV, 4 do
  local known = redis.call('HGET', KEYS[1] .. 'topics', ARGV[i])
  local partitions = tonumber(ARGV[i + 1])
  if known then
    local there = cjson.decode(known).partitions
    partitions = ARGV[1] == '1' and math.max(partitions, there) or there
  end
  redis.call('HSET', KEYS[1] .. 'topics', ARGV[i], cjson.encode({
    partitions = partitions, retention_ms = tonumber(ARGV[i + 2]), max_bytes = tonumber(ARGV[i + 3])
  }))
end
return 'OK'
