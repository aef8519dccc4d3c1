-- Create topics, or widen and retune those that exist: partitions never shrink.
-- KEYS: prefix. ARGV: (topic, partitions, retention_ms, max_bytes)...
for i = 1, #ARGV, 4 do
  local known = redis.call('HGET', KEYS[1] .. 'topics', ARGV[i])
  local partitions = tonumber(ARGV[i + 1])
  if known then
    partitions = math.max(partitions, cjson.decode(known).partitions)
  end
  redis.call('HSET', KEYS[1] .. 'topics', ARGV[i], cjson.encode({
    partitions = partitions, retention_ms = tonumber(ARGV[i + 2]), max_bytes = tonumber(ARGV[i + 3])
  }))
end
return 'OK'
