-- Give leases up, and the member's seat too when it leaves; rings the group's bell.
-- KEYS: prefix. ARGV: group, member, instance, leaving (0 or 1), (source, epoch)...
local prefix, group, member, instance = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
redis.call('DEL', prefix .. 'none') -- a script that has written is not refused by a full server (see ADR 0002)
for i = 5, #ARGV, 2 do
  local lease = redis.call('HGET', prefix .. 'leases:' .. group, ARGV[i])
  lease = lease and cjson.decode(lease)
  if lease and lease.instance == instance and lease.epoch == tonumber(ARGV[i + 1]) then
    lease.until_ms = 0
    redis.call('HSET', prefix .. 'leases:' .. group, ARGV[i], cjson.encode(lease))
  end
end
if ARGV[4] == '1' then
  local seat = redis.call('HGET', prefix .. 'members:' .. group, member)
  if seat and cjson.decode(seat).instance == instance then
    redis.call('HDEL', prefix .. 'members:' .. group, member)
  end
end
local generation = redis.call('HINCRBY', prefix .. 'generations', group, 1)
redis.call('XADD', prefix .. 'bell:' .. group, 'MAXLEN', 1, generation .. '-0', 'g', generation)
return 'OK'
