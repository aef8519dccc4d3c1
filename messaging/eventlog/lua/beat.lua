-- A member says that it lives: keeps its seat, renews its leases, buries the dead.
-- KEYS: prefix. ARGV: group, member, instance, joining (0 or 1), ttl_ms, topics (JSON), (source, epoch)...
-- Returns seated, generation, {member, topics...}, {topic, partitions...}, {lost source...}
local prefix, group, member, instance = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
redis.call('DEL', prefix .. 'none') -- a script that has written is not refused by a full server (see ADR 0002)
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local until_ms = now_ms + tonumber(ARGV[5])

local members_key = prefix .. 'members:' .. group
local members, changed = {}, false
local flat = redis.call('HGETALL', members_key)
for i = 1, #flat, 2 do
  local seat = cjson.decode(flat[i + 1])
  if seat.until_ms > now_ms then
    members[flat[i]] = seat
  else
    redis.call('HDEL', members_key, flat[i])
    changed = true
  end
end

local seat = members[member]
local seated = ARGV[4] == '1' or not seat or seat.instance == instance
if seated then
  changed = changed or not seat or seat.instance ~= instance
  members[member] = { instance = instance, until_ms = until_ms, topics = ARGV[6] }
  redis.call('HSET', members_key, member, cjson.encode(members[member]))
  for _, topic in ipairs(cjson.decode(ARGV[6])) do
    redis.call('SADD', prefix .. 'readers:' .. topic, group)
  end
end

local lost = {}
for i = 7, #ARGV, 2 do
  local lease = redis.call('HGET', prefix .. 'leases:' .. group, ARGV[i])
  lease = lease and cjson.decode(lease)
  local ours = lease and lease.instance == instance and lease.epoch == tonumber(ARGV[i + 1])
  if ours then
    lease.until_ms = seated and until_ms or 0
    redis.call('HSET', prefix .. 'leases:' .. group, ARGV[i], cjson.encode(lease))
  end
  if not (ours and seated) then
    lost[#lost + 1] = ARGV[i]
  end
end

local generation = tonumber(redis.call('HGET', prefix .. 'generations', group) or 0)
if changed then
  generation = redis.call('HINCRBY', prefix .. 'generations', group, 1)
  redis.call('XADD', prefix .. 'bell:' .. group, 'MAXLEN', 1, generation .. '-0', 'g', generation)
end

local seats = {}
for name, each in pairs(members) do
  seats[#seats + 1] = name
  seats[#seats + 1] = each.topics
end
return { seated and 1 or 0, generation, seats, redis.call('HGETALL', prefix .. 'topics'), lost }
