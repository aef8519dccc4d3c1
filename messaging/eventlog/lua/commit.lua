-- Record how far the group came, partition by partition, where the epoch is still ours; never backwards.
-- KEYS: prefix. ARGV: group, instance, (source, epoch, offset)... Returns the sources refused.
local prefix, group, instance = KEYS[1], ARGV[1], ARGV[2]
redis.call('DEL', prefix .. 'none') -- a script that has written is not refused by a full server (see ADR 0002)
local refused = {}
for i = 3, #ARGV, 3 do
  local lease = redis.call('HGET', prefix .. 'leases:' .. group, ARGV[i])
  lease = lease and cjson.decode(lease)
  if lease and lease.instance == instance and lease.epoch == tonumber(ARGV[i + 1]) then
    local before = tonumber(redis.call('HGET', prefix .. 'committed:' .. group, ARGV[i])
      or redis.call('HGET', prefix .. 'start', ARGV[i]) or 0)
    if tonumber(ARGV[i + 2]) > before then
      redis.call('HSET', prefix .. 'committed:' .. group, ARGV[i], ARGV[i + 2])
    end
  else
    refused[#refused + 1] = ARGV[i]
  end
end
return refused
